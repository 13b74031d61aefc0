"""Tests of the routes of the example, and of the API through them."""
