//! The parts of DNS messages that a forwarder must understand; the rest passes through unchanged. Pure.

use hickory_proto::op::{Edns, Header, Message, MessageType, Query, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// Maximum size of an answer over UDP, whatever the client accepts: fits into a packet on every path (O-22).
const MAX_UDP: u16 = 1232;

/// Offsets of the two flag bytes in the header (RFC 1035, 4.1.1), and the flags that are set here.
const FLAGS_HIGH: usize = 2;
const FLAGS_LOW: usize = 3;
const TRUNCATED: u8 = 0x02;
const RECURSION_AVAILABLE: u8 = 0x80;

/// A query that can be forwarded.
#[derive(Debug, Clone)]
pub(super) struct Request {
    message: Message,
}

/// How to handle a message from a client.
#[derive(Debug)]
pub(super) enum Received {
    /// Forward it to an upstream.
    Query(Request),
    /// Send this answer at once.
    Refused(Vec<u8>),
    /// Not a query. Answering it would make us part of an amplification attack.
    Noise,
}

impl Received {
    /// Parses a message from a client.
    pub fn parse(bytes: &[u8]) -> Self {
        let Ok(header) = Header::read(&mut BinDecoder::new(bytes)) else {
            return Self::Noise;
        };
        if header.message_type == MessageType::Response {
            return Self::Noise;
        }
        match Message::from_vec(bytes) {
            Ok(message) if !message.queries.is_empty() => Self::Query(Request { message }),
            _ => {
                let mut answer = Message::error_msg(header.id, header.op_code, ResponseCode::FormErr);
                answer.metadata.recursion_desired = header.recursion_desired;
                encode(answer).map_or(Self::Noise, Self::Refused)
            }
        }
    }
}

impl Request {
    /// The first question, for logs.
    pub fn question(&self) -> Option<&Query> {
        self.message.queries.first()
    }

    /// Whether `answer` answers this query, which was sent with `id`: same id, a response, and the same question,
    /// which an error may omit (O-12).
    pub fn is_answered_by(&self, id: u16, answer: &[u8]) -> bool {
        let mut decoder = BinDecoder::new(answer);
        let Ok(header) = Header::read(&mut decoder) else {
            return false;
        };
        if header.id != id || header.message_type != MessageType::Response {
            return false;
        }
        match Message::read_queries(&mut decoder, header.counts.queries.into()) {
            Ok(none) if none.is_empty() => header.response_code != ResponseCode::NoError,
            Ok(queries) => queries == self.message.queries,
            Err(_) => false,
        }
    }

    /// The answer for a client over UDP: truncated if it does not fit the size that the client accepts.
    pub fn answer_by_udp(&self, answer: Vec<u8>) -> Vec<u8> {
        let limit = usize::from(self.message.max_payload().min(MAX_UDP));
        if answer.len() <= limit {
            self.answer_by_tcp(answer)
        } else {
            self.truncated(&answer)
        }
    }

    /// The answer for a client over TCP: with the client's id and the recursion available flag.
    pub fn answer_by_tcp(&self, mut answer: Vec<u8>) -> Vec<u8> {
        set_id(&mut answer, self.message.metadata.id);
        if let Some(flags) = answer.get_mut(FLAGS_LOW) {
            *flags |= RECURSION_AVAILABLE;
        }
        answer
    }

    /// The answer if no upstream has one.
    pub fn failure(&self) -> Vec<u8> {
        encode(self.reply(ResponseCode::ServFail)).unwrap_or_default()
    }

    fn truncated(&self, answer: &[u8]) -> Vec<u8> {
        let code = Header::read(&mut BinDecoder::new(answer)).map_or(ResponseCode::ServFail, |h| h.response_code);
        let mut reply = self.reply(code);
        reply.metadata.truncation = true;
        encode(reply).unwrap_or_default()
    }

    /// A reply with the question, and with EDNS if the query has it (RFC 6891, 6.1.1).
    fn reply(&self, code: ResponseCode) -> Message {
        let query = &self.message.metadata;
        let mut reply = Message::error_msg(query.id, query.op_code, code);
        reply.metadata.recursion_desired = query.recursion_desired;
        reply.metadata.checking_disabled = query.checking_disabled;
        reply.add_queries(self.message.queries.iter().cloned());
        if self.message.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP);
            reply.set_edns(edns);
        }
        reply
    }
}

/// Whether the answer has the truncated flag.
pub(super) fn is_truncated(answer: &[u8]) -> bool {
    Header::read(&mut BinDecoder::new(answer)).is_ok_and(|h| h.truncation)
}

/// Sets the truncated flag.
pub(super) fn set_truncated(answer: &mut [u8]) {
    if let Some(flags) = answer.get_mut(FLAGS_HIGH) {
        *flags |= TRUNCATED;
    }
}

/// Replaces the id of a message.
pub(super) fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.first_chunk_mut() {
        *place = id.to_be_bytes();
    }
}

fn encode(mut message: Message) -> Option<Vec<u8>> {
    message.metadata.recursion_available = true;
    message.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::op::OpCode;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    use super::*;

    fn query(id: u16) -> Message {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii("example.test.").unwrap(), RecordType::A));
        message
    }

    fn answer(id: u16, records: u8) -> Vec<u8> {
        let mut message = query(id);
        message.metadata.message_type = MessageType::Response;
        for n in 0..records {
            let address = RData::A(A(Ipv4Addr::new(192, 0, 2, n)));
            message.add_answer(Record::from_rdata(
                Name::from_ascii("example.test.").unwrap(),
                60,
                address,
            ));
        }
        message.to_vec().unwrap()
    }

    fn request(message: Message) -> Request {
        match Received::parse(&message.to_vec().unwrap()) {
            Received::Query(request) => request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_gets_the_clients_id_and_ra() {
        let read = Message::from_vec(&request(query(7)).answer_by_udp(answer(9, 1))).unwrap();
        assert_eq!(
            (read.metadata.id, read.metadata.recursion_available, read.answers.len()),
            (7, true, 1)
        );
    }

    #[test]
    fn an_answer_over_the_clients_size_is_cut() {
        let long = answer(9, 60);
        assert!(long.len() > 512 && long.len() < 1232);
        let read = |message: Message| Message::from_vec(&request(message).answer_by_udp(long.clone())).unwrap();
        let cut = read(query(7));
        assert!(cut.metadata.truncation && cut.answers.is_empty() && cut.queries.len() == 1);
        let mut with_edns = query(7);
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        with_edns.set_edns(edns);
        assert!(!read(with_edns).metadata.truncation);
    }

    #[test]
    fn a_client_that_takes_more_gets_no_more_than_fits_every_path() {
        let mut generous = query(7);
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        generous.set_edns(edns);
        let long = answer(9, 120);
        assert!(long.len() > 1232);
        let cut = Message::from_vec(&request(generous.clone()).answer_by_udp(long.clone())).unwrap();
        assert!(cut.metadata.truncation && cut.edns.is_some());
        assert_eq!(
            Message::from_vec(&request(generous).answer_by_tcp(long))
                .unwrap()
                .answers
                .len(),
            120
        );
    }

    #[test]
    fn only_the_answer_to_the_question_counts() {
        let request = request(query(7));
        assert!(request.is_answered_by(9, &answer(9, 1)));
        assert!(!request.is_answered_by(9, &answer(8, 1)), "another id");
        assert!(!request.is_answered_by(9, &query(9).to_vec().unwrap()), "a query");
        let mut other = Message::response(9, OpCode::Query);
        other.add_query(Query::query(Name::from_ascii("example.org.").unwrap(), RecordType::A));
        assert!(!request.is_answered_by(9, &other.to_vec().unwrap()), "another question");
        let bare = Message::error_msg(9, OpCode::Query, ResponseCode::FormErr);
        assert!(
            request.is_answered_by(9, &bare.to_vec().unwrap()),
            "an error without question"
        );
        assert!(!request.is_answered_by(9, b"x"));
    }

    #[test]
    fn no_question_is_a_format_error() {
        for bytes in [Message::new(7, MessageType::Query, OpCode::Query).to_vec().unwrap(), {
            let mut cut = query(7).to_vec().unwrap();
            cut.truncate(20);
            cut
        }] {
            let Received::Refused(reply) = Received::parse(&bytes) else {
                panic!("{bytes:?}")
            };
            let reply = Message::from_vec(&reply).unwrap();
            assert_eq!(
                (reply.metadata.id, reply.metadata.response_code),
                (7, ResponseCode::FormErr)
            );
            assert!(reply.metadata.recursion_available);
        }
    }

    #[test]
    fn noise_is_not_answered() {
        for bytes in [&b""[..], b"short", &answer(7, 1)] {
            assert!(matches!(Received::parse(bytes), Received::Noise), "{bytes:?}");
        }
    }

    #[test]
    fn no_answer_is_a_server_failure_for_the_same_question() {
        let reply = Message::from_vec(&request(query(7)).failure()).unwrap();
        assert_eq!(
            (reply.metadata.id, reply.metadata.response_code),
            (7, ResponseCode::ServFail)
        );
        assert_eq!(reply.queries, query(7).queries);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            let _ = is_truncated(&bytes);
            if let Received::Query(request) = Received::parse(&bytes) {
                request.is_answered_by(0, &bytes);
                request.failure();
                request.answer_by_udp(bytes);
            }
        }
    }
}
