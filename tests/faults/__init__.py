"""The fault lab: real servers in namespaces of their own, everything that can go wrong, and a checker."""
