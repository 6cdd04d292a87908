"""Pages for a browser: pictures before and after."""
