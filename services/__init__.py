"""The services: one package per domain. They import `models`, `bus` and `infra`, and never each other."""
