"""The history of the application's tables, apart from the bus's own."""
