import subprocess
import sys

PROGRAM = """
import os, sys
from mambair_cli.system.stderr import muted
print("before", file=sys.stderr)
try:
    with muted():
        os.write(2, b"a library\\n")
        print("during", file=sys.stderr)
        raise ValueError
except ValueError:
    print("after", file=sys.stderr)
os.write(2, b"and again\\n")
"""


def run(program, **options):
    return subprocess.run([sys.executable, "-c", program], text=True, check=True, **options)


def test_libraries_are_mute_and_python_is_not():
    done = run(PROGRAM, capture_output=True)
    assert done.stderr.split("\n") == ["before", "during", "after", "and again", ""]


def test_without_stderr():
    """As for a program that was started with it closed."""
    program = "import os; os.close(2)\nfrom mambair_cli.system.stderr import muted\n"
    done = run(program + "with muted(): print('fine')", stdout=subprocess.PIPE)
    assert done.stdout == "fine\n"
