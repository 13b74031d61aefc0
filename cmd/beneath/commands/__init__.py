"""What `beneath` can be told to do. Modules here import the application inside functions: `--help` stays quick."""
