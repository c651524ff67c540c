"""LivePerson: the Domain API and Sentinel."""
