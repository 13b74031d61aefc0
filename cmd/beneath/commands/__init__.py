"""The commands of `beneath`. Modules import the application inside functions, so that `--help` stays fast."""
