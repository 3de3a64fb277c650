"""``python -m kdengine``: the command line."""

from kdengine.cli.main import main

if __name__ == "__main__":
    main()
