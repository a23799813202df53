"""Payments: validated, screened, reserved, captured and refunded; see docs/reference/payments.md."""
