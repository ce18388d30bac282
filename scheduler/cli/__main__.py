"""``python -m scheduler.cli``: the same as the ``sharewright`` command."""

from scheduler.cli import main

if __name__ == "__main__":
    main()
