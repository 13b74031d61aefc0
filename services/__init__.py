"""One package per domain; they meet through events."""
