"""The composition root: settings, containers, completeness."""
