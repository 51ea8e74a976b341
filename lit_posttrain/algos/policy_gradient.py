"""The loss that the policy-gradient algorithms share: a term for each token, reduced over the optimiser step."""

from abc import abstractmethod

from torch import Tensor

from lit_posttrain.algos.online import OnlineModule
from lit_posttrain.batching import MicroBatch, Rollout
from lit_posttrain.functional import Aggregation, KLEstimator, PolicyLoss, aggregate, kl_estimate, normalizer
from lit_posttrain.models.networks.policy import TokenStatistics
from lit_posttrain.rollout.experience import Experience


class PolicyGradientModule(OnlineModule):
    """Descends a loss per token; what an algorithm adds is that loss and its advantages.

    Its arguments are those of `RolloutModule`.

    Attributes:
        aggregation: how token losses become one number (`functional.aggregate`).
        mask_truncated: leave completions out of the loss that were cut off at the longest length.
        entropy_coef: whether `token_loss` needs a gradient of the entropy: > 0 if so.
        kl_value: the estimator of `policy/kl_ref`.
    """

    aggregation: Aggregation = "token"
    mask_truncated: bool = False
    entropy_coef: float = 0.0
    kl_value: KLEstimator = "k3"

    @abstractmethod
    def token_loss(self, logprobs: Tensor, old_logprobs: Tensor, entropy: Tensor, rollout: Rollout) -> PolicyLoss:
        """The loss of each token and where it was clipped.

        Args:
            logprobs: under the policy, (B, C), nats.
            old_logprobs: under the policy that sampled, (B, C); equal values where the step is exactly on-policy.
            entropy: of the policy at each token, (B, C), nats.
            rollout: advantages, masks and the reference's log-probs, (B, C).
        """

    def loss_mask(self, experience: Experience) -> Tensor:
        """All sampled tokens, or those of completions that ended by themselves: (B, C)."""
        mask = experience.tokens.completion_mask
        return mask & ~experience.truncated[:, None] if self.mask_truncated else mask

    def loss_normalizer(self, loss_mask: Tensor) -> Tensor:
        """What these rows add to the denominator of the step's loss: ()."""
        return normalizer(loss_mask, self.aggregation, max_length=self.sampling.max_new_tokens)

    def learning_tokens(self, loss_mask: Tensor, advantages: Tensor) -> Tensor:
        """Tokens with an advantage: ()."""
        return (loss_mask & (advantages != 0)).sum()

    def total_loss(self, policy_loss: Tensor, statistics: TokenStatistics, batch: MicroBatch) -> Tensor:
        """The whole loss of a micro-batch from that of its policy, () to (); the same unless more is trained."""
        return policy_loss

    def loss(self, batch: MicroBatch) -> Tensor:
        """This micro-batch's share of the optimiser step's loss: ()."""
        rollout, mask = batch.rollout, batch.rollout.loss_mask
        statistics = self.token_statistics(rollout, entropy_gradient=self.entropy_coef > 0)
        logprobs, entropy = statistics.logprobs, statistics.entropy
        old_logprobs = logprobs.detach() if rollout.old_logprobs is None else rollout.old_logprobs
        token_loss, clipped = self.token_loss(logprobs, old_logprobs, entropy, rollout)
        loss = aggregate(
            token_loss,
            mask,
            self.aggregation,
            normalizer=batch.normalizer,
            max_length=self.sampling.max_new_tokens,
        )
        loss = self.total_loss(loss, statistics, batch)

        log_ratio = (logprobs - old_logprobs).detach()
        self._statistics.add("loss", loss)
        self._statistics.add("tokens", mask)
        self._statistics.add("sequences", mask.any(1))
        self._statistics.add("clipped", clipped, mask)
        self._statistics.add("entropy", entropy, mask)
        self._statistics.add("approx_kl", kl_estimate(old_logprobs, logprobs, estimator="k3"), mask)
        self._statistics.maximum("ratio", log_ratio.exp(), mask)
        if rollout.ref_logprobs is not None:
            self._statistics.add("kl_ref", kl_estimate(logprobs, rollout.ref_logprobs, estimator=self.kl_value), mask)
        return loss

    def step_metrics(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over the tokens of an optimiser step."""
        tokens = totals["tokens"].clamp(min=1)
        metrics = {
            "train/loss": totals["loss"],
            "policy/entropy": totals["entropy"] / tokens,
            "policy/approx_kl": totals["approx_kl"] / tokens,
            "policy/clip_frac": totals["clipped"] / tokens,
            "policy/ratio_max": totals["ratio"],
        }
        if "kl_ref" in totals:
            metrics["policy/kl_ref"] = totals["kl_ref"] / tokens
            metrics["policy/kl_ref_sequence"] = totals["kl_ref"] / totals["sequences"].clamp(min=1)
        return metrics
