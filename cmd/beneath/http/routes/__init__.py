"""One module for each kind of thing: translate, call a service, translate back."""
