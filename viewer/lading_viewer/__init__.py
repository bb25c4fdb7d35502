"""The audit log in a browser: `web` serves it, `app` is the page, `audit_log` what is on it."""
