"""The entry point of the command `beneath` and of `python -m beneath`."""

import signal


def main() -> None:
    """Run this process's command line. Ctrl-C during the imports before it ends the process without a traceback."""
    interactive = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interactive:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from beneath.cli import main as run

    if interactive:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
