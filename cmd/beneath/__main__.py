"""`python -m beneath` is `beneath`."""

from beneath.cli import main

if __name__ == "__main__":
    main()
