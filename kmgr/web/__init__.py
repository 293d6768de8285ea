"""The portal, the console and the API, served by every server for the whole grid."""
