"""``lightning-signin report``: plots of runs."""

import argparse

from lightning_signin.errors import SignInError
from lightning_signin.report import write_report


def report(arguments: list[str]) -> None:
    """Write the page and print where it is.

    Raises:
        SignInError: If matplotlib is missing, or if `write_report` raises it.
    """
    parser = argparse.ArgumentParser("lightning-signin report", description="A page with the plots of runs.")
    parser.add_argument("runs", metavar="RUN_DIR", nargs="+", help="a folder with the metrics.csv of CSVLogger")
    parser.add_argument("--output", metavar="DIR", help="where to write (default: report/ in the first RUN_DIR)")
    options = parser.parse_args(arguments)
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise SignInError("`report` needs matplotlib. Install it: pip install 'lightning-signin[plot]'.") from error
    print(write_report(options.runs, options.output))
