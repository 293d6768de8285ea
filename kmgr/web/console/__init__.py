"""The console: the whole grid on pages, for administrators."""
