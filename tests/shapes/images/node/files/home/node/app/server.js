// Answers with what it knows of its surroundings; ends by SIGTERM when open requests are answered.
const http = require('http');
const os = require('os');
const v8 = require('v8');

const server = http.createServer((request, response) => {
  response.end(JSON.stringify({
    greeting: 'hello from node', uid: process.getuid(), home: os.homedir(),
    heap: v8.getHeapStatistics().heap_size_limit,
  }));
});
server.listen(3000, () => console.log('listening on 3000'));
process.on('SIGTERM', () => {
  console.log('SIGTERM: no more requests');
  server.close(() => process.exit(0));
  server.closeIdleConnections();
});
