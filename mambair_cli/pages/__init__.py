"""Pages for a browser: pictures side by side, and the local page of `mambair app`."""
