//! `status`, `mode` and `explain` over several nodes: all are asked at once, each answers for itself.

use std::future::Future;
use std::io::Write as _;

use futures_util::future::join_all;
use sekisho_proto::{
    ExplainRequest, ExplainResponse, GetModeRequest, ModeResponse, NamesRequest, NamesResponse, SetModeRequest, StatusRequest,
    StatusResponse, to_json,
};
use tokio::sync::Semaphore;
use tonic::{Response, Status};

use super::super::client::{Client, run};
use super::super::output::{Format, OutputArgs, Printer, closed, paint};
use super::super::{Exit, Failure, render};
use super::places::{self, Place};
use super::tunnel::{PATIENCE, Tunnel};
use super::{AT_ONCE, ClusterArgs, complain};

/// What one node answered: or why not, and whether it was reached at all.
struct Answer<T> {
    node: String,
    said: Result<T, Silence>,
}

enum Silence {
    /// It could not be asked.
    Unreached(String),
    /// It was, and refused.
    Refused(String),
}

impl Silence {
    fn text(&self) -> &str {
        let (Self::Unreached(text) | Self::Refused(text)) = self;
        text
    }
}

/// Asks every node that is meant.
async fn ask<T, F>(args: &ClusterArgs, question: impl Fn(Client) -> F) -> Result<Vec<Answer<T>>, Failure>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let kube = args.client().await?;
    let places = places::find(&kube, args).await?;
    let turns = Semaphore::new(AT_ONCE);
    let one = async |place: Place| {
        let _turn = turns.acquire().await;
        let said = async {
            let pod = place.pod.map_err(Silence::Unreached)?;
            let tunnel = Tunnel::open(&kube, &args.agents_namespace, &pod).await.map_err(Silence::Unreached)?;
            match tokio::time::timeout(PATIENCE, question(tunnel.client.clone())).await {
                Err(_) => Err(Silence::Unreached(format!("its agent {pod} did not answer within {} s", PATIENCE.as_secs()))),
                Ok(Ok(answer)) => Ok(answer.into_inner()),
                Ok(Err(status)) if super::super::client::is_broken(&status) => Err(Silence::Unreached(tunnel.why(&status).await)),
                Ok(Err(status)) => Err(Silence::Refused(status.message().to_owned())),
            }
        };
        Answer { said: said.await, node: place.node }
    };
    Ok(join_all(places.into_iter().map(one)).await)
}

/// Says who did not answer, and how the command ends.
fn conclude<T>(answers: &[Answer<T>]) -> Exit {
    let mut exit = Exit::Done;
    for answer in answers {
        if let Err(silence) = &answer.said {
            complain(&answer.node, silence.text());
            exit = Exit::NotReady;
        }
    }
    exit
}

/// A page for one node, a table for more.
pub(in crate::cli) fn status(args: &ClusterArgs, output: OutputArgs) -> Result<Exit, Failure> {
    run(async {
        let answers: Vec<Answer<StatusResponse>> = ask(args, |mut client| async move { client.status(StatusRequest {}).await }).await?;
        let mut printer = Printer::new(output);
        if matches!(output.format(), Format::Compact | Format::Wide) && !args.one() {
            let rows: Vec<_> = answers.iter().map(|a| (a.node.as_str(), a.said.as_ref().map_err(Silence::text))).collect();
            printer.text(&render::nodes(&rows, paint()))?;
        } else {
            for status in answers.iter().filter_map(|answer| answer.said.as_ref().ok()) {
                printer.print(status, render::status)?;
            }
        }
        printer.flush()?;
        let mut exit = conclude(&answers);
        for status in answers.iter().filter_map(|answer| answer.said.as_ref().ok()).filter(|status| !status.ready) {
            for why in &status.unready {
                complain(&status.node, format_args!("not ready: {why}"));
            }
            exit = Exit::NotReady;
        }
        Ok(exit)
    })
}

/// What every agent that answers says of itself; the others are named on stderr.
pub(in crate::cli) fn statuses(args: &ClusterArgs) -> Result<Vec<StatusResponse>, Failure> {
    let mut statuses = Vec::new();
    run(async {
        let answers: Vec<Answer<StatusResponse>> = ask(args, |mut client| async move { client.status(StatusRequest {}).await }).await?;
        let exit = conclude(&answers);
        statuses.extend(answers.into_iter().filter_map(|answer| answer.said.ok()));
        Ok(exit)
    })?;
    Ok(statuses)
}

/// The first answer of any agent to a question about names.
pub(in crate::cli) async fn first_names(args: &ClusterArgs, request: &NamesRequest) -> Option<NamesResponse> {
    let kube = args.client().await.ok()?;
    for place in places::find(&kube, args).await.ok()? {
        let Ok(pod) = place.pod else { continue };
        let Ok(tunnel) = Tunnel::open(&kube, &args.agents_namespace, &pod).await else { continue };
        let mut client = tunnel.client.clone();
        if let Ok(Ok(names)) = tokio::time::timeout(PATIENCE, client.names(request.clone())).await {
            return Some(names.into_inner());
        }
    }
    None
}

/// One line for each node.
pub(in crate::cli) fn mode(args: &ClusterArgs, mode: Option<&str>, output: OutputArgs) -> Result<Exit, Failure> {
    run(async {
        let question = |mut client: Client| {
            let mode = mode.map(str::to_owned);
            async move {
                match mode {
                    Some(mode) => client.set_mode(SetModeRequest { mode }).await,
                    None => client.get_mode(GetModeRequest {}).await,
                }
            }
        };
        let answers: Vec<Answer<ModeResponse>> = ask(args, question).await?;
        let width = answers.iter().map(|answer| answer.node.len()).max().unwrap_or_default();
        let mut out = std::io::stdout().lock();
        for (answer, response) in answers.iter().filter_map(|answer| answer.said.as_ref().ok().map(|response| (answer, response))) {
            let mode = &response.mode;
            let line = match output.format() {
                Format::Compact | Format::Wide => format!("{:<width$}  {mode}", answer.node),
                form => {
                    // An agent from before it named itself.
                    let json = to_json(&ModeResponse { node: answer.node.clone(), ..response.clone() });
                    if form == Format::Json { json } else { format!("{}\n", render::dict(&json)) }
                }
            };
            writeln!(out, "{line}").map_err(|error| closed(&error))?;
        }
        let exit = conclude(&answers);
        if exit != Exit::Done && mode.is_some() {
            eprintln!(
                "sekisho: the mode was not set on every node; where no agent answers, `sekisho mode observe` works on the node itself"
            );
        }
        Ok(exit)
    })
}

/// Both ends, each from the node whose pod it is.
pub(in crate::cli) fn explain(args: &ClusterArgs, request: &ExplainRequest, output: OutputArgs) -> Result<Exit, Failure> {
    run(async {
        let question = |mut client: Client| {
            let request = request.clone();
            async move { client.explain(request).await }
        };
        let answers: Vec<Answer<ExplainResponse>> = ask(args, question).await?;
        let mut exit = Exit::Done;
        for answer in &answers {
            if let Err(Silence::Unreached(why)) = &answer.said {
                complain(&answer.node, why);
                exit = Exit::NotReady;
            }
        }
        let Some(whole) = whole(answers.iter().filter_map(|answer| answer.said.as_ref().ok())) else {
            return Err(Failure::new(Exit::NotReady, refusal(&answers, request)));
        };
        let mut printer = Printer::new(output);
        printer.print(&whole, |answer, paint| render::explanation(request, answer, paint))?;
        printer.flush()?;
        Ok(exit)
    })
}

/// One answer out of those of the nodes that judge one end each, or both.
fn whole<'a>(answers: impl Iterator<Item = &'a ExplainResponse>) -> Option<ExplainResponse> {
    let mut whole: Option<ExplainResponse> = None;
    for answer in answers {
        let Some(whole) = &mut whole else {
            whole = Some(answer.clone());
            continue;
        };
        whole.egress = whole.egress.take().or_else(|| answer.egress.clone());
        whole.ingress = whole.ingress.take().or_else(|| answer.ingress.clone());
        if whole.mode != answer.mode {
            whole.mode = format!("{}, {}", whole.mode, answer.mode);
        }
    }
    let mut whole = whole?;
    if whole.egress.is_some() {
        whole.egress_elsewhere = None;
    }
    if whole.ingress.is_some() {
        whole.ingress_elsewhere = None;
    }
    whole.conclude();
    Some(whole)
}

/// Why nobody explains: a pod that is not known is so for every agent.
fn refusal(answers: &[Answer<ExplainResponse>], request: &ExplainRequest) -> String {
    let refused = answers.iter().filter_map(|answer| match &answer.said {
        Err(Silence::Refused(text)) => Some(text.as_str()),
        _ => None,
    });
    let elsewhere = |text: &&str| text.contains("another node's agent decides");
    let first = refused.clone().find(|text| !elsewhere(text));
    first.map_or_else(|| format!("neither {} nor {} is a pod of a node whose agent answered", request.from, request.to), str::to_owned)
}

#[cfg(test)]
mod tests {
    use sekisho_proto::{Decision, Outcome};

    use super::*;

    fn decision(verdict: Outcome) -> Decision {
        Decision { verdict: verdict.into(), enforced: verdict.into(), ..Decision::default() }
    }

    #[test]
    fn each_end_is_explained_by_its_own_node_and_the_worse_verdict_counts() {
        let mut egress = ExplainResponse { egress: Some(decision(Outcome::Allowed)), mode: "enforce".into(), ..ExplainResponse::default() };
        egress.ingress_elsewhere = Some("the agent of node b".into());
        let mut ingress =
            ExplainResponse { ingress: Some(decision(Outcome::Denied)), mode: "enforce".into(), ..ExplainResponse::default() };
        ingress.egress_elsewhere = Some("the agent of node a".into());
        assert_eq!(whole([&egress].into_iter()).map(|whole| whole.verdict()), Some(Outcome::Undetermined), "node b was not reached");
        let allowed = ExplainResponse { ingress: Some(decision(Outcome::Allowed)), ..ingress.clone() };
        assert_eq!(whole([&egress, &allowed].into_iter()).map(|whole| whole.verdict()), Some(Outcome::Allowed));
        for answers in [[&egress, &ingress], [&ingress, &egress]] {
            let whole = whole(answers.into_iter()).expect("two answers");
            assert_eq!(whole.verdict(), Outcome::Denied);
            assert_eq!((whole.egress.is_some(), whole.ingress.is_some(), whole.mode.as_str()), (true, true, "enforce"));
        }
        assert_eq!(whole(std::iter::empty()), None);
    }

    #[test]
    fn a_pod_that_nobody_knows_is_said_rather_than_whose_it_is_not() {
        let request = ExplainRequest { from: "a/b".into(), to: "c/d".into(), ..ExplainRequest::default() };
        let refused = |text: &str| Answer { node: "n".into(), said: Err(Silence::Refused(text.into())) };
        let elsewhere = "neither a/b nor c/d is a pod of node n: another node's agent decides";
        assert_eq!(refusal(&[refused(elsewhere), refused("pod c/d is not known")], &request), "pod c/d is not known");
        assert!(refusal(&[refused(elsewhere)], &request).contains("whose agent answered"));
    }
}
