"""`python -m mimjax.main`, which is `mimjax train`."""

import sys

from mimjax.__main__ import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
