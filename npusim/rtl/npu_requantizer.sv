// One column's requantizer: bias and zero-point correction, multiply, round and shift, output zero point, clamp.
//
// REQUANT_LATENCY registers lie between the accumulator's sum and the result. With four they stand after the accumulator,
// after the correction, after the multiplication and at the output; with fewer they go in that order, the output register
// last; with more the first one is deeper.

module npu_requantizer
  import npu_machine::*;
  import npu_types::*;
(
    input  logic                           clk,
    input  logic                           valid,
    input  logic signed [    ACC_BITS-1:0] acc,
    input  logic signed [ROW_SUM_BITS-1:0] row_sum,
    input  logic signed [            47:0] bias,
    input  logic signed [             7:0] zero_point,
    input  logic        [MULTIPLIER_BITS-2:0] multiplier,
    input  logic        [             5:0] shift,
    input  logic        [             3:0] out_type,
    input  logic signed [            31:0] out_zero_point,
    output logic                           result_next,  // `result` gets a value at the end of this cycle
    output logic signed [            31:0] result,
    output logic                           overflow      // of the corrected sum
);
  localparam int CORRECTED_DEPTH = REQUANT_LATENCY >= 3 ? 1 : 0;
  localparam int PRODUCT_DEPTH = REQUANT_LATENCY >= 2 ? 1 : 0;
  localparam int SUM_DEPTH = REQUANT_LATENCY >= 4 ? REQUANT_LATENCY - 3 : 0;

  typedef struct packed {
    logic valid;
    logic [MULTIPLIER_BITS-2:0] multiplier;
    logic [5:0] shift;
  } scale_t;

  // 1. the accumulated sum
  wire scale_t scale_in = '{valid: valid, multiplier: multiplier, shift: shift};
  scale_t scale1;
  logic signed [ACC_BITS-1:0] acc1;
  logic signed [ROW_SUM_BITS-1:0] row_sum1;
  logic signed [47:0] bias1;
  logic signed [7:0] zero_point1;
  npu_delay #(
      .BITS ($bits(scale_t) + ACC_BITS + ROW_SUM_BITS + 48 + 8),
      .DEPTH(SUM_DEPTH)
  ) sum_stage (
      .clk,
      .in ({scale_in, acc, row_sum, bias, zero_point}),
      .out({scale1, acc1, row_sum1, bias1, zero_point1})
  );

  // 2. bias and zero-point correction, exact in 64 bits, then narrowed to the accumulator's width
  wire signed [63:0] correction = 64'(zero_point1) * 64'(row_sum1);
  wire signed [63:0] exact = 64'(acc1) + 64'(bias1) - correction;
  logic signed [ACC_BITS-1:0] narrowed;
  logic narrow_overflow;
  npu_narrow #(.IN_BITS(64), .OUT_BITS(ACC_BITS), .MODE(OVERFLOW)) narrow (
      .in(exact), .out(narrowed), .overflow(narrow_overflow)
  );
  assign overflow = scale1.valid && narrow_overflow;

  scale_t scale2;
  logic signed [ACC_BITS-1:0] corrected;
  npu_delay #(.BITS($bits(scale_t) + ACC_BITS), .DEPTH(CORRECTED_DEPTH)) corrected_stage (
      .clk, .in({scale1, narrowed}), .out({scale2, corrected})
  );

  // 3. multiply: at most 48 + 15 or 32 + 31 bits, so the sums below cannot overflow 64
  wire signed [63:0] exact_product = 64'(corrected) * $signed(64'(scale2.multiplier));
  scale_t scale3;
  logic signed [63:0] product;
  npu_delay #(.BITS($bits(scale_t) + 64), .DEPTH(PRODUCT_DEPTH)) product_stage (
      .clk, .in({scale2, exact_product}), .out({scale3, product})
  );

  // 4. round, shift, saturate to 32 bits, add the output zero point, clamp. Double rounding looks at the value's sign, which
  // is the product's: where the multiplier is 0 both signs give 0.
  wire signed [63:0] half = 64'sd1 <<< (scale3.shift - 6'd1);
  wire signed [63:0] away = product[63] ? -(64'sd1 <<< 30) : 64'sd1 <<< 30;
  wire signed [63:0] rounding = (DOUBLE_ROUNDING && scale3.shift > 6'd31) ? half + away : half;
  wire signed [63:0] shifted = (product + rounding) >>> scale3.shift;

  logic signed [31:0] scaled;
  npu_narrow #(.IN_BITS(64), .OUT_BITS(32), .MODE(SATURATE)) to_int32 (.in(shifted), .out(scaled), .overflow());

  wire signed [32:0] offset = 33'(scaled) + 33'(out_zero_point);
  logic signed [32:0] low, high;
  always_comb begin
    case (out_type)
      U8: {low, high} = {33'sd0, 33'sd255};
      I8: {low, high} = {-33'sd128, 33'sd127};
      I16: {low, high} = {-33'sd32768, 33'sd32767};
      default: {low, high} = {-33'sd2147483648, 33'sd2147483647};
    endcase
  end
  wire signed [32:0] clamped = offset < low ? low : offset > high ? high : offset;

  assign result_next = scale3.valid;
  always_ff @(posedge clk) result <= clamped[31:0];
endmodule
