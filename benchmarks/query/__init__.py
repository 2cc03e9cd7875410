"""Speed of queries and of the recommendation job."""
