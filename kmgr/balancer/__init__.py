"""Where desktops live: filling pools, emptying lost servers, keeping a reserve."""
