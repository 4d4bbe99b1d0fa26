"""``python -m crossdistill``, which launchers of several processes call."""

from crossdistill.cli import main

main()
