"""The part of the API that knows no domain. It imports no service and no model."""
