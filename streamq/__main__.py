"""`python -m streamq` is `streamq`."""

from streamq.cli import main

main()
