"""Safe reaching: a planar arm with two links moves its hand to a target and must not touch an obstacle.

`geometry` (pure), `scenes` (what is where, and the splits), `arm` (MuJoCo), `task` (observation, reward, end), `agent`
(the network), `evaluation`, `film`, and `environment` (the task for Gymnasium:
`gymnasium.make("reaching.environment:Reaching-v0")`). The task is that of
*AI Training Manager: Bounded Closed-Loop Control of Adaptive Training Recipes* (https://arxiv.org/abs/2606.29871).
"""
