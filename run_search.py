"""python run_search.py --budget 2x: the same as `scaling-search search`."""

import sys

from scaling_search.cli import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]], prog="run_search.py"))
