"""What desktops are made from: a golden image version, a shape and a policy."""
