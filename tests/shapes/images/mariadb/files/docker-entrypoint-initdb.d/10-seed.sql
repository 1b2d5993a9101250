CREATE TABLE seed (word VARCHAR(20));
INSERT INTO seed VALUES ('seeded');
