"""`python -m fastscnn`, and the `fastscnn` command."""

import sys


def main() -> int:
    """Runs the command line; Ctrl-C while it loads is exit code 130."""
    try:
        from fastscnn import cli
    except KeyboardInterrupt:
        return 130
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
