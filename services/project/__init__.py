"""The project service: projects of organizations."""
