"""Who a person is and what that person may use, with the reason for every answer."""
