"""What a server and a client of the V2 protocol both need to speak it over gRPC."""
