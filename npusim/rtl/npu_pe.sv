// One cell of the array. Activations and control go to the right, sums and the weight chain go down, one cell a cycle.
//
// The weight chain has two registers per cell, `chain` and `forward`: control reaches row r one cycle after row r - 1, so
// without `forward` every row would take the very word that row 0 takes. With shadow weights `chain` is the shadow, and the
// cell computes with `active`; without, it computes with `chain`.

module npu_pe
  import npu_machine::*;
  import npu_types::*;
(
    input  logic                        clk,
    input  stream_t                     stream_in,
    output stream_t                     stream_out,
    input  logic        [ ACT_BITS-1:0] act_in,
    output logic        [ ACT_BITS-1:0] act_out,
    input  logic        [         15:0] weight_in,
    output logic        [         15:0] weight_out,
    input  logic signed [PSUM_BITS-1:0] psum_in,
    output logic signed [PSUM_BITS-1:0] psum_out
);
  logic [15:0] chain, forward, weight;

  always_ff @(posedge clk) begin
    if (stream_in.load) chain <= weight_in;
    forward <= chain;
    stream_out <= stream_in;
    act_out <= act_in;
  end
  assign weight_out = forward;

  if (SHADOW_WEIGHTS) begin : g_shadow
    logic [15:0] active;
    // The first row of a fold computes with the shadow itself: in the same cycle the chain may begin to move again.
    assign weight = stream_in.latch ? chain : active;
    always_ff @(posedge clk) if (stream_in.latch) active <= chain;
  end else begin : g_single
    assign weight = chain;
  end

  // Signed lanes of the weight.
  wire signed [LANE_BITS-1:0] low = {!stream_in.w_wide && weight[7], weight[7:0]};
  wire signed [LANE_BITS-1:0] high = {weight[15], weight[15:8]};

  logic signed [PSUM_BITS-1:0] term[A_LANES][W_LANES];
  logic signed [PSUM_BITS-1:0] sum;
  for (genvar i = 0; i < A_LANES; i++) begin : g_act
    for (genvar j = 0; j < W_LANES; j++) begin : g_weight
      wire signed [LANE_BITS-1:0] a = act_in[i*LANE_BITS+:LANE_BITS];
      wire signed [LANE_BITS-1:0] w =
          (W_LANES == 1) ? (stream_in.w_high ? high : low) : (j == 0) ? low : stream_in.w_wide ? high : '0;
      // A wire of the full width: a product takes the width of its context, and a cast of it would cut it to the operands'.
      wire signed [17:0] product = a * w;
      assign term[i][j] = PSUM_BITS'(product) <<< (8 * (i + j));
    end
  end
  always_comb begin
    sum = psum_in;
    for (int i = 0; i < A_LANES; i++) for (int j = 0; j < W_LANES; j++) sum += term[i][j];
  end
  always_ff @(posedge clk) psum_out <= sum;
endmodule
