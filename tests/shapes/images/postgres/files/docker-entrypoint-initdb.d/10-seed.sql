CREATE TABLE seed (word text);
INSERT INTO seed VALUES ('seeded');
