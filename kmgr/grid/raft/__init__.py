"""The replicated log: pysyncobj 0.3.17, wrapped until what was acknowledged stays (docs/decisions/0001)."""
