"""The process's entry point: `beneath`, also as `python -m beneath`."""

import signal


def main() -> None:
    """Run the command line of this process. Ctrl-C before that, while modules are imported, ends it without a word."""
    interactive = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interactive:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from beneath.cli import main as run

    if interactive:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
