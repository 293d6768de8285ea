"""The JSON API, version 1: everything the pages can do, for programs."""
