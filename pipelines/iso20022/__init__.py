"""ISO 20022 at the edge: payment instructions in (pacs.008, pain.001), answers out (pacs.002, pain.002, camt.053).

`read_credit_transfers` makes plain instructions of XML, `write_status_report` and `write_statement` make XML of plain
values. Amounts are integers of the currency's minor units; times are ISO 8601 text, since nothing here needs to
calculate with them.

Supported are the message versions of the SEPA instant scheme and CBPR+ (2019 version, as in `xml.VERSIONS`) and later
ones that only add to them. What is read is checked against the rules that matter to a payment - structure, lengths,
control sums, IBAN and BIC - and not against the whole XSD: the schemas are not in this project, since their owner's
terms do not fit its licence. What is written has the elements that the schemas require, in the schemas' order.
"""
