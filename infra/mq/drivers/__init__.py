"""One message queue driver per module or package; only the composition root picks one."""
