"""Tells customers what happened, by webhook, e-mail, SMS and WebSocket.

    notifications.requests -> notifier: intake -> Postgres (the outbox) -> deliverers -> the customer
                                                        |                     |
                                  API: /v1/notifications                notifications.deliveries

A request is acknowledged to Kafka when its deliveries are rows of the outbox. A delivery is sent by whoever has its
lease and is done when the other side has taken it; a notifier that dies in between is outlived by the lease, and the
delivery is sent again with the same id. So each delivery happens at least once, and receivers drop an id they know.
"""
