"""All tests of kmgr, a folder a kind."""
