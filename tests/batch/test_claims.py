import subprocess
import sys
import threading

from mambair_cli.batch.claims import Claims

HOLD = """
import sys
from pathlib import Path
from mambair_cli.batch.claims import Claims
folder = Path(sys.argv[1])
claims = Claims(folder)
assert claims.take(folder / "sub" / "a.png")
print("held", flush=True)
sys.stdin.read()
"""


def test_one_run_at_a_time_has_a_result(tmp_path):
    one, two = Claims(tmp_path), Claims(tmp_path)
    first, second = tmp_path / "a.png", tmp_path / "sub" / "a.png"
    assert one.take(first)
    assert not two.take(first)
    assert two.take(second)
    assert not one.take(second)
    one.give_back(first)
    assert two.take(first)
    two.give_all_back()
    assert one.take(first)
    assert one.take(second)
    one.give_all_back()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_claimed_is_not_given_back(tmp_path):
    claims = Claims(tmp_path)
    claims.give_back(tmp_path / "a.png")
    claims.give_back(None)
    assert claims.take(tmp_path / "a.png")
    claims.give_all_back()


def test_another_thread_may_give_back(tmp_path):
    one, two = Claims(tmp_path), Claims(tmp_path)
    target = tmp_path / "a.png"
    assert one.take(target)
    thread = threading.Thread(target=one.give_back, args=(target,))
    thread.start()
    thread.join()
    assert two.take(target)
    two.give_all_back()


def test_a_killed_run_holds_nothing(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "held\n"
        claims = Claims(tmp_path)
        assert not claims.take(tmp_path / "sub" / "a.png")
        run.kill()
        run.wait()
    assert claims.take(tmp_path / "sub" / "a.png", wait=True)
    claims.give_all_back()
