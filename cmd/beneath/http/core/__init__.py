"""The frame of the API, without any domain: it imports no service and no model."""
