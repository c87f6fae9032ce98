//! What of DNS messages (RFC 1035) matters to us: the one question, and addresses in the answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use smoltcp::wire::{DnsFlags, DnsOpcode, DnsPacket, DnsQueryType, DnsQuestion, DnsRecord, DnsRecordData};

/// Bytes of a message's header.
const HEADER: usize = 12;
/// Records looked at in one answer.
const RECORDS: usize = 64;
/// "The name server refuses" (RFC 1035, 4.1.1).
const REFUSED: u16 = 5;
const QR: u16 = 1 << 15;
/// Recursion available, recursion desired.
const RA: u16 = 1 << 7;
const RD: u16 = 1 << 8;

/// A query with one question.
#[derive(Debug, PartialEq, Eq)]
pub struct Question {
    /// Lower case, without a final dot.
    pub name: String,
    /// Bytes of header and question.
    pub len: usize,
    pub kind: QuestionKind,
}

/// The type asked for, as far as we care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuestionKind {
    V4,
    V6,
    Other,
}

/// Reads the name at `raw` with its compression pointers, each of which must point further back (RFC 1035, 4.1.4).
fn name(message: &[u8], mut at: usize) -> Option<String> {
    let mut text = String::new();
    let mut limit = at;
    loop {
        let len = usize::from(*message.get(at)?);
        match len {
            0 => return Some(text),
            1..=63 => {
                let label = message.get(at + 1..at + 1 + len)?;
                let fine = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
                if !label.iter().all(fine) || text.len() + len > 253 {
                    return None;
                }
                if !text.is_empty() {
                    text.push('.');
                }
                text.extend(label.iter().map(|b| b.to_ascii_lowercase() as char));
                at += 1 + len;
            }
            0xc0..=0xff => {
                let target = (len & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
                if target >= limit {
                    return None;
                }
                (at, limit) = (target, target);
            }
            _ => return None,
        }
    }
}

/// The question of a query, or of the answer to it; `None` for anything but one question of an ordinary name.
pub fn question(message: &[u8]) -> Option<Question> {
    let packet = DnsPacket::new_checked(message).ok()?;
    if packet.question_count() != 1 || packet.opcode() != DnsOpcode::Query {
        return None;
    }
    let (rest, asked) = DnsQuestion::parse(packet.payload()).ok()?;
    let kind = match asked.type_ {
        DnsQueryType::A => QuestionKind::V4,
        DnsQueryType::Aaaa => QuestionKind::V6,
        _ => QuestionKind::Other,
    };
    Some(Question { name: name(message, HEADER)?, len: message.len() - rest.len(), kind })
}

/// Whether `answer` answers `query`: same id, same question, and an answer.
pub fn answers(query: &[u8], answer: &[u8]) -> bool {
    let (Some(asked), Ok(packet)) = (question(query), DnsPacket::new_checked(answer)) else { return false };
    let echoed = question(answer).is_some_and(|again| again.name == asked.name && again.kind == asked.kind);
    packet.flags().contains(DnsFlags::RESPONSE) && query.get(..2) == answer.get(..2) && echoed
}

/// Every address in the answer section, with its time to live. Resolvers put aliases and their addresses together.
pub fn addresses(answer: &[u8]) -> Vec<(IpAddr, Duration)> {
    let mut found = Vec::new();
    let Ok(packet) = DnsPacket::new_checked(answer) else { return found };
    let Some(asked) = question(answer) else { return found };
    let mut rest = answer.get(asked.len..).unwrap_or_default();
    for _ in 0..usize::from(packet.answer_record_count()).min(RECORDS) {
        let Ok((later, record)) = DnsRecord::parse(rest) else { break };
        let ttl = Duration::from_secs(record.ttl.into());
        match record.data {
            DnsRecordData::A(a) => found.push((a.into(), ttl)),
            DnsRecordData::Aaaa(a) => found.push((a.into(), ttl)),
            _ => {}
        }
        rest = later;
    }
    found
}

/// An answer with the query's own question: refused, or with one address or none.
fn own_answer(query: &[u8], asked: &Question, code: u16, record: &[u8]) -> Vec<u8> {
    let mut answer = query.get(..asked.len).unwrap_or_default().to_vec();
    let desired = u16::from_be_bytes([query[2], query[3]]) & RD;
    answer[2..4].copy_from_slice(&(QR | RA | desired | code).to_be_bytes());
    let records = [1, u16::from(!record.is_empty()), 0, 0];
    for (to, count) in answer[4..HEADER].chunks_exact_mut(2).zip(records) {
        to.copy_from_slice(&count.to_be_bytes());
    }
    answer.extend_from_slice(record);
    answer
}

/// "Refused".
pub fn refusal(query: &[u8], asked: &Question) -> Vec<u8> {
    own_answer(query, asked, REFUSED, &[])
}

/// The answer for a name of ours.
pub fn known(query: &[u8], asked: &Question, v4: Ipv4Addr, v6: Option<Ipv6Addr>) -> Vec<u8> {
    // The question's name by pointer, class IN, a minute to live.
    let head = |kind: u8, len: u8| vec![0xc0, HEADER as u8, 0, kind, 0, 1, 0, 0, 0, 60, 0, len];
    let record = match asked.kind {
        QuestionKind::V4 => [head(1, 4), v4.octets().to_vec()].concat(),
        QuestionKind::V6 => v6.map_or(Vec::new(), |v6| [head(28, 16), v6.octets().to_vec()].concat()),
        QuestionKind::Other => Vec::new(),
    };
    own_answer(query, asked, 0, &record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u8) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend_from_slice(label.as_bytes());
        }
        message.extend_from_slice(&[0, 0, kind, 0, 1]);
        message
    }

    #[test]
    fn a_question_is_read_and_answered() {
        let query = query("Www.Example.org", 1);
        let asked = question(&query).unwrap();
        assert_eq!((asked.name.as_str(), asked.kind), ("www.example.org", QuestionKind::V4));
        let answer = known(&query, &asked, Ipv4Addr::new(192, 0, 2, 1), Some(Ipv6Addr::LOCALHOST));
        assert!(answers(&query, &answer));
        assert_eq!(addresses(&answer), [(Ipv4Addr::new(192, 0, 2, 1).into(), Duration::from_secs(60))]);
        let refused = refusal(&query, &asked);
        assert!(answers(&query, &refused) && addresses(&refused).is_empty());
        assert_eq!(refused[3] & 15, 5);
        assert!(!answers(&query, &query), "a query is no answer");
    }

    #[test]
    fn names_that_lead_nowhere_end() {
        let mut looped = query("a", 1);
        looped[12] = 0xc0;
        looped[13] = 12;
        assert_eq!(name(&looped, 12), None);
        assert_eq!(name(&looped, 4000), None);
        for cut in 0..looped.len() {
            let _ = question(&looped[..cut]);
            let _ = addresses(&looped[..cut]);
        }
    }
}
