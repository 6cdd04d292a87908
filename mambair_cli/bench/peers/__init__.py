"""Our networks beside what a user would pick instead, on this machine."""
